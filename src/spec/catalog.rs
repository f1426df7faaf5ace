//! Looking up models, devices and nodes by name.
