"""How a device records: microphone, room, camera and light, as a card that travels, and public clips rendered to it."""
