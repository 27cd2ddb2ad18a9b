"""Stand-ins for services and files from elsewhere, for the demo and the tests."""
