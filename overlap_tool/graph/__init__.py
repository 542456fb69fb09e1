"""A stage as a network of ops: traced from a module, checked against its values, cut at barriers."""
