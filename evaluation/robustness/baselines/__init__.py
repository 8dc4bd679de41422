"""Published methods that adapt a network to a device without labels, as their papers describe them."""
