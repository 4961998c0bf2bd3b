"""Training that does not depend on the world: the same samples, weights and noise at any number of ranks.

A step's global batch is a number of samples, cut into micro-batches of a fixed size that are numbered; the world only
decides which rank computes which number (`shares`). `loop` deals them out and weighs their losses. Gradients are
summed over all samples and divided once by the global count: by DDP and FSDP2 themselves (`sums`), or, in the
bit-exact mode, along a fixed tree over the micro-batches' numbers (`tree`, `trees`, `exchange`, `sharded`). `keyed`
makes noise a function of the micro-batch, `clip` a gradient norm that does not depend on how tensors are cut.
docs/exactness.md says what is exact, and where that ends.
"""
