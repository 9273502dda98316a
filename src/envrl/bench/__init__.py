"""`envrl bench rollout` and `envrl bench train`: measure an update with a model, by phase."""
