"""What is wrong with a stream, or would go wrong with it: findings of every kind."""
