"""A stage as a network of ops: traced from a module, held to its values, cut at barriers."""
