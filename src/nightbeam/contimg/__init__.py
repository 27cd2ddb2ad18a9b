"""One group of subbands from arrival to image: the steps, in the order in which they run."""
