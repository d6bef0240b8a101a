"""Training runs side by side: what differs between them, what it brings, and how they learned."""
