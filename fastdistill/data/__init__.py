"""Real data: sources, the uint8 store, normalisation, ZCA, splits and the keyed class sampler."""
