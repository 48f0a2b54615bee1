"""The emulated AMD host: started, spoken to, ended."""
