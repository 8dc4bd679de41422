"""Who may take part: authority, certificates, tokens."""
