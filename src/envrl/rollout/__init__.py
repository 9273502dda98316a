"""Playing: prompt formats, the batched sampler, and the runner that turns tasks into trajectories."""
