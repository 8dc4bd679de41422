"""What runs on a device: features, prototypes, local calibration and the Flower ClientApp."""
