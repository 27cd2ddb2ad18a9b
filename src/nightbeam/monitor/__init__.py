"""The page and the API that show the state of everything."""
