"""The ground floor: what every room may use and what knows nothing of any of them."""
