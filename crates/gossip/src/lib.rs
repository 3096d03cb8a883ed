//! Floor 2: who is alive, at which address, in which version and role, as members tell one another (SWIM, by `foca`).
