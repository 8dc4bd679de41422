"""The ServerApp: personalisation jobs over Flower, their journal, and the messages to devices."""
