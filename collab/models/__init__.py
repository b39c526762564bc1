"""Networks: the decoder family, its named shapes, its weights. The only package that imports flax.

`transformer` is the network, `presets` the named shapes, `weights` reads and writes files.
"""
