//! Dense identifiers: each counts from 0 and indexes a vector.

use std::fmt;

macro_rules! dense_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// The position of this item in a vector of its kind.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

dense_id! {
    /// A request, in order of arrival.
    RequestId
}
dense_id! {
    /// One copy of the model: `tensor_parallel x pipeline_parallel` devices.
    ReplicaId
}
dense_id! {
    /// One pipeline stage of a replica, counted from the embedding.
    StageId
}
