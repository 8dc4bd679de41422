"""What leaves a device: prototypes, their noise, the ledger of what was told."""
