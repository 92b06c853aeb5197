"""Where the op goes in: another forward for a module, other nodes for a graph module, a pass for Dynamo's graphs."""
