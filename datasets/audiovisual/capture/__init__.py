"""How a device records: the microphones, rooms, cameras and light that public clips do not have."""
