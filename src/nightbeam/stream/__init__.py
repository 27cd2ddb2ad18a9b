"""The sharded queue between a network and the writer, over Ray, which is imported when it is used."""
