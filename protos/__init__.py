"""Every wire format: the messages between cloud and device, and their codec to Flower records."""
