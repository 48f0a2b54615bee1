"""KVM's side of a restore as an executable model; opens no file."""
