"""Foreign layouts, a file a model: its table of names, its config.json, and ours from that file.

Every file has `table(module)` (see `interop.mapping`), `describe(module)`, the content of the
config.json that the other library reads, and `module_of(config, path)`, our module from it.
"""
