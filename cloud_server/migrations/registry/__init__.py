"""Steps of the task registry's schema, oldest first."""
