"""From a calibrated Measurement Set to an image with its measured quality."""
