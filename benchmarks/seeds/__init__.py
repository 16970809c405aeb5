"""The published systems that this library began from, rebuilt and beaten: each public file is one of them."""
