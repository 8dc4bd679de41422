"""The ground floor: code that every room may use and that depends on none of them."""
