"""The one door to SQLAlchemy: the queue, the calibration registry and the products."""
