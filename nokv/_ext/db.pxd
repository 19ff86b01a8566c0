from nokv._ext.apply cimport WritableStore

cdef class Core(WritableStore):
    pass
