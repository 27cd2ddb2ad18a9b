"""A producer of batches: frames through a torch model into the queue."""
