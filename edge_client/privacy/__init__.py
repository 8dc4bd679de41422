"""What leaves a device: prototypes, their noise, and the ledger of all uploads."""
