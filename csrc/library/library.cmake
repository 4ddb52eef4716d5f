# SPDX-License-Identifier: Apache-2.0
# libfuseo1_cpu, and what `cmake --install` puts beside it. All of it may be moved after that, as one.
include(CheckLinkerFlag)
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

add_library(fuseo1_cpu SHARED ${FUSEO1_DRIVERS})
# Before 1.0 every minor version may change the ABI.
set_target_properties(fuseo1_cpu PROPERTIES
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  EXPORT_NAME cpu
  CXX_VISIBILITY_PRESET default)  # exports.map, not the compiler, hides what is not the C ABI
target_include_directories(fuseo1_cpu INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_options(fuseo1_cpu PRIVATE
  "-Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/exports.map" -Wl,--no-undefined)
# A program then needs no C++ runtime, and may have one of any version. Some systems lack it as an archive.
set(runtime -static-libstdc++ -static-libgcc)
check_linker_flag(CXX "${runtime}" FUSEO1_HAS_STATIC_RUNTIME)
if(FUSEO1_HAS_STATIC_RUNTIME)
  target_link_options(fuseo1_cpu PRIVATE ${runtime})
else()
  message(STATUS "fuseo1: there is no static C++ runtime here; programs will load the shared one")
endif()

set(headers average.h decode.h files.h fold.h fuse.h select.h survey.h types.h)
list(TRANSFORM headers PREPEND ${PROJECT_SOURCE_DIR}/csrc/include/fuseo1/)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/fuseo1)
file(RELATIVE_PATH to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
file(RELATIVE_PATH to_include ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(${CMAKE_CURRENT_LIST_DIR}/fuseo1_cpu.pc.in fuseo1_cpu.pc @ONLY)
write_basic_package_version_file(fuseo1-config-version.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS fuseo1_cpu EXPORT fuseo1)
install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fuseo1)
install(EXPORT fuseo1 NAMESPACE fuseo1:: FILE fuseo1-config.cmake DESTINATION ${package})
install(FILES ${PROJECT_BINARY_DIR}/fuseo1-config-version.cmake DESTINATION ${package})
install(FILES ${PROJECT_BINARY_DIR}/fuseo1_cpu.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
