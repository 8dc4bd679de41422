"""Every ``fedstill`` command: options, one call, one line for an error."""
