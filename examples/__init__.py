"""Starting points for an integration. Each is run by a test of its own."""
