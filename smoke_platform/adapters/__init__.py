"""One module per third-party system, each implementing what the domain asks for. Knows the domain only."""
