"""The packet path outside the interpreter: C, its binding, and where pages lie; `multifd.engine` can do without."""
