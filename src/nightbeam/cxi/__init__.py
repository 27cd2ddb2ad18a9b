"""CXI files that CrystFEL indexes, and the service that writes them."""
