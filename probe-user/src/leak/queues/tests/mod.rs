mod captured;
mod procfs;
mod readings;
mod torn;
