"""Speed and accuracy of token schedules on real images (Tables 3.1 and 3.2)."""
