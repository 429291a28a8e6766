"""What is true of smoke detection whatever the infrastructure. Imports no framework, no client and no other room."""
