//! Archives and pickles made by hand.

/// An archive with this pickle and one storage of six f32.
pub fn archive(pickle: &[u8]) -> Vec<u8> {
    members(&[("x/data.pkl", pickle), ("x/data/0", &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat())])
}

/// An archive of these members.
pub fn members(list: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut all, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in list {
        let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fields.extend(crc32fast::hash(data).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((all.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        all.extend(b"PK\x03\x04");
        all.extend(&fields);
        all.extend(name.as_bytes());
        all.extend(*data);
    }
    let place = all.len() as u32;
    all.extend(&directory);
    all.extend(b"PK\x05\x06\0\0\0\0");
    all.extend([(list.len() as u16).to_le_bytes(); 2].concat());
    all.extend((directory.len() as u32).to_le_bytes());
    all.extend(place.to_le_bytes());
    all.extend([0, 0]);
    all
}

/// A view of storage 0: `offset`, extents and strides as pickled numbers.
pub fn view(offset: &[u8], shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &storage[..], offset, b"(", shape, b"t(", stride, b"t\x89NtR"].concat()
}
