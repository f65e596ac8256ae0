// The precompiled header needs one source file that owns it.
