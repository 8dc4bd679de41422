"""The ServerApp: personalisation jobs over Flower, their journal, what travels."""
