"""The agent and the Flower app of a device."""
