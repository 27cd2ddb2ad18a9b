"""The sharded queue between a network and the writer, over Ray."""
