import faulthandler; faulthandler.dump_traceback_later(130, exit=True)
