"""Three Flower apps that train alike: without privacy, with Opacus, and with dpcomp."""
