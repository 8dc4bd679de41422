"""How ``fedstill serve`` is put together."""
