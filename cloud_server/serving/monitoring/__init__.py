"""What a person sees of a running server: its history, its alarms, the page that shows them, and the metrics' port."""
